package node

import (
	"context"

	"github.com/nacrehq/nacre"
)

// Snapshot keeps a running sandbox; see nacre.Node.
func (n *Node) Snapshot(ctx context.Context, id nacre.SandboxID, spec nacre.SnapshotSpec) (nacre.SnapshotManifest, error) {
	return nacre.SnapshotManifest{}, nacre.Errorf(nacre.CodeUnsupported, "snapshots are not available on this host")
}

// Snapshots lists what exists here; see nacre.Node.
func (n *Node) Snapshots(context.Context) ([]nacre.SnapshotManifest, error) { return nil, nil }

// DeleteSnapshot removes a snapshot; see nacre.Node.
func (n *Node) DeleteSnapshot(context.Context, nacre.SnapshotID) error { return nil }
