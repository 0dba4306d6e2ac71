// Package thread runs functions on threads of their own, for what Linux keeps for
// each thread and not for the process: namespaces, cgroups of version 1, no_new_privs.
package thread

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Do runs f on a thread of its own, which then ends: whatever f changed about the
// thread is gone with it. (It cannot be the process's first thread, which Go does not
// end.) What f forks is the thread's child, and has to have executed when f returns.
func Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- Do(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

// ErrNoNamespace means that a name has lost its namespace, or never had one.
var ErrNoNamespace = errors.New("it names no network namespace")

// InNetwork runs f in the network namespace that path names. A socket that f makes
// stays one of that namespace; files in /proc/sys/net are the namespace's of the
// thread that opens them.
func InNetwork(path string, f func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	defer ns.Close()
	return Do(func() error {
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		if err == unix.EINVAL {
			err = ErrNoNamespace
		}
		if err != nil {
			return fmt.Errorf("network namespace %s: %w", path, err)
		}
		return f()
	})
}
