// Package nacre is the vocabulary of the product: its nouns, states, errors and
// contracts. It imports the standard library only; every other package ("room")
// imports it, and rooms do not import each other. ARCHITECTURE.md draws the whole.
package nacre

import (
	"crypto/rand"
	"time"
)

// Clock tells the time. Rooms take one instead of calling time.Now so that a
// test can move it.
type Clock func() time.Time

// SandboxID names a sandbox for ever. It is 'i' followed by 20 characters of
// [a-z0-9]: it stands inside a host label ("8080-<id>"), where '-' separates.
type SandboxID string

// MachineID names one run of a sandbox on one host, or a standby that waits for
// a sandbox. Netns, cgroup, directories and filter chains carry it. It is 'm'
// followed by 16 characters of [a-z0-9]; all have one length because gVisor
// resolves container ids by prefix.
type MachineID string

// TeamID names the tenant that everything belongs to: "team_" + 16 characters.
type TeamID string

// NodeID names one host.
type NodeID string

// TemplateID names a template, "t" + 19 characters of [a-z0-9]; BuildID one
// immutable artifact of it, "b" + 19 characters.
type (
	TemplateID string
	BuildID    string
)

// SnapshotID names a snapshot for ever: "s" + 19 characters of [a-z0-9].
type SnapshotID string

const idAlphabet = "abcdefghijklmnopqrstuvwxyz0123456789"

// NewSandboxID returns a fresh, unguessable id (103 bits).
func NewSandboxID() SandboxID { return SandboxID("i" + randomID(20)) }

// NewMachineID returns a fresh machine id.
func NewMachineID() MachineID { return MachineID("m" + randomID(16)) }

// NewTeamID returns a fresh team id.
func NewTeamID() TeamID { return TeamID("team_" + randomID(16)) }

// NewTemplateID returns a fresh template id.
func NewTemplateID() TemplateID { return TemplateID("t" + randomID(19)) }

// NewBuildID returns a fresh build id.
func NewBuildID() BuildID { return BuildID("b" + randomID(19)) }

// NewSnapshotID returns a fresh, unguessable id.
func NewSnapshotID() SnapshotID { return SnapshotID("s" + randomID(19)) }

// Valid tells whether the id has the form that NewSandboxID gives. Anything
// else is unknown without asking the store.
func (id SandboxID) Valid() bool { return validID(string(id), 'i', 20) }

// Valid tells whether the id has the form that NewMachineID gives.
func (id MachineID) Valid() bool { return validID(string(id), 'm', 16) }

// Valid tells whether the id has the form that NewSnapshotID gives.
func (id SnapshotID) Valid() bool { return validID(string(id), 's', 19) }

func validID(s string, first byte, n int) bool {
	if len(s) != n+1 || s[0] != first {
		return false
	}
	for i := 1; i < len(s); i++ {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// randomID returns n characters of idAlphabet, unbiased. crypto/rand never fails
// on the platforms that Go supports (it ends the process instead).
func randomID(n int) string {
	out := make([]byte, 0, n)
	buf := make([]byte, n+n/2)
	for len(out) < n {
		_, _ = rand.Read(buf)
		for _, b := range buf {
			if b < 252 && len(out) < n { // 252 = 7*36: no bias
				out = append(out, idAlphabet[b%36])
			}
		}
	}
	return string(out)
}
