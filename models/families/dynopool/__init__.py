"""DynOPool in VGG16, EfficientNet-B0 and HRNet-W48."""
