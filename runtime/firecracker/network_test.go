package firecracker

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/nacrehq/nacre/nacretest/fakenet"
	"github.com/nacrehq/nacre/nacretest/reach"
	"github.com/nacrehq/nacre/network"
)

// TestFault39_40_WhatAMicroVMReaches: what a microVM reaches is what a gVisor sandbox does. Its kernel is the
// guest's own, so it sends whatever packets it likes.
func TestFault39_40_WhatAMicroVMReaches(t *testing.T) {
	inet := fakenet.Start(t)
	n, err := network.New(network.Config{Instance: "fct", Ready: 2})
	check(t, err)
	t.Cleanup(func() {
		check(t, n.Close(context.Background()))
		check(t, network.Destroy("fct"))
	})
	check(t, n.Recover(t.Context(), nil))
	reach.Test(t, reach.Host{
		Network: n, Runtime: newRuntime(t), Guest: filepath.Join(host.dir, reachGuest), Image: filepath.Join(host.dir, reachRoot),
		RawSockets: true, Patience: 20 * time.Second, Bulk: 8 << 20,
	}, inet)
}
