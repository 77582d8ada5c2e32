"""What runs on the device: manifest, preprocessing and one wrapper module per runtime."""
