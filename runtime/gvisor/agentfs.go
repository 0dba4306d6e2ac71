package gvisor

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nacrehq/nacre/internal/agentfs"
)

// The agent reaches the guest as a file system that holds it alone. gVisor can
// start a program from an open file of the host too, but forgets that file when it
// restores a snapshot: the program's pages would be gone. A file system is given
// anew at each restore.
const (
	agentDir  = "/run/nacre" // where it is mounted
	agentFile = "agent"
)

// agentPrefix begins the names of the file systems.
const agentPrefix = "agent"

// agentImage makes one. Its name and its superblock say the program's hash.
func agentImage(program []byte) (sum [16]byte, image []byte, err error) {
	whole := sha256.Sum256(program)
	sum = [16]byte(whole[:16])
	image, err = agentfs.Image(sum, map[string][]byte{agentFile: program}, nil)
	return sum, image, err
}

// sweepAgents removes the file systems of agents that no machine here has and that
// none would be started with. Snapshots have copies of their own.
func (r *Runtime) sweepAgents() error {
	current, err := r.agents.Of(r.cfg.Agent, agentImage)
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	used := map[string]bool{}
	for _, m := range r.machines.All() { // for a start under way see agentfs.Grace
		var b birth
		text, err := os.ReadFile(filepath.Join(m.st.Dir, bootFile))
		if err == nil && json.Unmarshal(text, &b) == nil {
			used[b.Agent] = true
		}
	}
	return r.agents.Sweep(filepath.Dir(current), used, r.cfg.Clock())
}
