"""What watches or drives a machine from outside: gdb's remote protocol."""
