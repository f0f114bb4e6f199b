"""What the files of a cache hold and are called: values and bytes, no input or output."""
