"""File formats at the border: safetensors files, Hugging Face and PEFT directories, in and out byte for byte."""
