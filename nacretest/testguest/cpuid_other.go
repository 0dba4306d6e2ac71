//go:build !amd64

package main

// cpuid is no question that other processors answer.
func cpuid(uint32, uint32) (a, b, c, d uint32) { return }
