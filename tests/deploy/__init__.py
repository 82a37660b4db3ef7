"""What stands in deploy/, run with the programs that run it elsewhere."""
