"""What coordinator and workers say to each other: documents (canonical JSON) and opaque bytes. No torch, no Flower."""
