"""The compiled ops: importing it registers ``torch.ops.fastmtt``; it has no names of its own."""
