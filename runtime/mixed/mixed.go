// Package mixed makes one runtime of several drivers, so that one host makes machines
// of each. A machine is its driver's: its spec names the driver when it is made, its
// handle when it is taken back.
package mixed

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nacrehq/nacre"
)

// Runtime implements nacre.Runtime.
type Runtime struct {
	drivers []nacre.Runtime // kept ones last
	can     nacre.Capabilities
}

// New returns a runtime of the drivers, of which the first makes the machines that
// ask for none by name. Those that are kept make none: they have what an earlier
// process started run to its end.
//
// Drivers may share what they find machines by (a parent cgroup): Sweep's keep must
// then know every machine.
func New(drivers, kept []nacre.Runtime) (*Runtime, error) {
	if len(drivers) == 0 {
		return nil, errors.New("mixed: no driver makes machines")
	}
	r := &Runtime{drivers: slices.Concat(drivers, kept)}
	for i, d := range r.drivers {
		c := d.Capabilities()
		if _, twice := r.can.Of(c.Runtime); i > 0 && twice {
			return nil, fmt.Errorf("mixed: two drivers are called %q", c.Runtime)
		}
		c.Kept = i >= len(drivers)
		if i == 0 {
			r.can = c
		} else {
			r.can.Others = append(r.can.Others, c)
		}
	}
	return r, nil
}

// Name is the first driver's.
func (r *Runtime) Name() nacre.RuntimeName { return r.can.Runtime }

// Capabilities are the first driver's; Others has those of all others.
func (r *Runtime) Capabilities() nacre.Capabilities { return r.can }

// maker returns the driver that the spec asks for.
func (r *Runtime) maker(spec nacre.MachineSpec) (nacre.Runtime, error) {
	c, err := r.can.Offers(spec.Runtime)
	if err != nil {
		return nil, err
	}
	return r.driver(c.Runtime), nil
}

// driver returns nil for a name that none has.
func (r *Runtime) driver(name nacre.RuntimeName) nacre.Runtime {
	for _, d := range r.drivers {
		if d.Name() == name {
			return d
		}
	}
	return nil
}

// Start implements nacre.Runtime.
func (r *Runtime) Start(ctx context.Context, spec nacre.MachineSpec) (nacre.Machine, error) {
	d, err := r.maker(spec)
	if err != nil {
		return nil, err
	}
	return d.Start(ctx, spec)
}

// Restore implements nacre.Runtime. A snapshot of another driver's is refused by the
// one that the spec asks for.
func (r *Runtime) Restore(ctx context.Context, spec nacre.MachineSpec, dir string) (nacre.Machine, error) {
	d, err := r.maker(spec)
	if err != nil {
		return nil, err
	}
	return d.Restore(ctx, spec, dir)
}

// Recover implements nacre.Runtime. A handle of a driver that is not here is
// CodeUnsupported, and its machine is left alone.
func (r *Runtime) Recover(ctx context.Context, h nacre.Handle) (nacre.Machine, error) {
	d := r.driver(h.Runtime)
	if d == nil {
		return nil, nacre.Errorf(nacre.CodeUnsupported, "machine %.40q is of the runtime %.40q, which is not open here", h.Machine, h.Runtime)
	}
	return d.Recover(ctx, h)
}

// VerifySnapshot implements nacre.Runtime: the driver that a snapshot is bound to
// has the word.
func (r *Runtime) VerifySnapshot(ctx context.Context, dir string) error {
	var first error
	for _, d := range r.drivers {
		err := d.VerifySnapshot(ctx, dir)
		if !nacre.IsCode(err, nacre.CodeMismatch) {
			return err
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// Sweep implements nacre.Runtime.
func (r *Runtime) Sweep(ctx context.Context, keep func(nacre.MachineID) bool) error {
	var errs []error
	for _, d := range r.drivers {
		errs = append(errs, d.Sweep(ctx, keep))
	}
	return errors.Join(errs...)
}

// Close ends what this process does for the machines, of all drivers that can be
// closed, the last first.
func (r *Runtime) Close() error {
	var errs []error
	for _, d := range slices.Backward(r.drivers) {
		if c, ok := d.(interface{ Close() error }); ok {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}
