//go:build !amd64

package gvisor

// umounterCode is nil: gVisor's own child does it.
func umounterCode() []byte { return nil }
