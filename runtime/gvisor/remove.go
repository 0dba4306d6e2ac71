package gvisor

import (
	"errors"

	"golang.org/x/sys/unix"
)

// RemoveParent removes the cgroup that holds the machines' ones, after the last
// machine has ended. The driver must not be used afterwards. A repeat is no error.
func (r *Runtime) RemoveParent() error {
	var errs []error
	for _, d := range r.cgroup.Dirs("") {
		if err := unix.Rmdir(d); err != nil && err != unix.ENOENT {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
