//go:build !amd64

package kvmhost

// tickRate is not known: the emulated kernel measures.
func tickRate() int { return 0 }
