package main

// cpuid asks the processor what it is.
func cpuid(leaf, sub uint32) (a, b, c, d uint32)
