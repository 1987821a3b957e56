"""Room: lease, plan, boot, watch and tear down machines on one host."""
