"""Everything that concerns the Hub: what diffusers must know of us, model cards, uploads and downloads."""
