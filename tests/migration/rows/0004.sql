UPDATE machines SET answered = false WHERE machine_id = 5;
