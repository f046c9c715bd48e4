"""U-Net, and what each tensor says of one."""
