UPDATE machines SET attestation = jsonb_build_object(
    'image', 'base', 'manifest', repeat('a', 64), 'kernel', repeat('b', 64), 'initramfs', repeat('c', 64),
    'rootfs', repeat('d', 64), 'verified_at', 1795291200.0, 'overridden', '[]'::jsonb, 'template', NULL)
WHERE machine_id = 2;
