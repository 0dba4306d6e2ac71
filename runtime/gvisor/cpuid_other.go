//go:build !amd64

package gvisor

import "gvisor.dev/gvisor/pkg/cpuid"

// letCPUID does nothing: no other processor has the instruction.
func letCPUID() error { return nil }

// unnamedFeatures is empty: gVisor takes what features there are from the host's kernel.
func unnamedFeatures(cpuid.FeatureSet) string { return "" }
