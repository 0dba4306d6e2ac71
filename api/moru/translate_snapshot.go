package moru

import (
	"strings"
	"time"

	"github.com/nacrehq/nacre"
)

// maxForks is E2B's, and so is how long a fork lives when nothing is said.
const (
	maxForks    = 100
	forkTimeout = 15 * time.Second
)

// maxComment bounds what is kept for people.
const maxComment = 1000

// snapshotName reads an id of a snapshot: "<team>/<name>:default", "<id>:default",
// and both without the tag or the team. ok is false for what names another team's
// or cannot be one.
func snapshotName(team nacre.TeamID, ref string) (name string, ok bool) {
	name, tag, tagged := strings.Cut(ref, ":")
	if tagged && tag != snapshotTag {
		return "", false
	}
	if owner, rest, qualified := strings.Cut(name, "/"); qualified {
		if owner != string(team) {
			return "", false
		}
		name = rest
	}
	return name, name != "" && !strings.ContainsAny(name, "/:")
}

func snapshotRequest(team nacre.TeamID, in snapshotBody) (nacre.SnapshotRequest, error) {
	out := nacre.SnapshotRequest{Comment: in.Comment, FilesOnly: withoutMemory(in.Memory)}
	if in.Name != "" {
		name, ok := snapshotName(team, in.Name)
		if !ok || nacre.SnapshotID(name).Valid() {
			return out, nacre.Invalidf("name", "name must have neither '/' nor ':' in it, nor look like a snapshot's id")
		}
		out.Name = name
	}
	if len(in.Comment) > maxComment {
		return out, nacre.Invalidf("comment", "comment must have at most %d bytes", maxComment)
	}
	var err error
	out.Keep, err = duration("expiresIn", in.ExpiresIn, 0)
	return out, err
}

// forkRequest adds what the body says to whose copies are asked for.
func forkRequest(of nacre.ForkRequest, in forkBody) (nacre.ForkRequest, error) {
	unsaid := forkTimeout
	if in.InheritTimeout {
		unsaid = 0
	}
	var err error
	if of.Timeout, err = duration("timeout", in.Timeout, unsaid); err != nil {
		return of, err
	}
	of.Count = 1
	if in.Count != nil {
		of.Count = *in.Count
	}
	if of.Count < 1 || of.Count > maxForks {
		return of, nacre.Invalidf("count", "count must be from 1 to %d", maxForks)
	}
	if in.AutoPause != nil {
		of.OnTimeout = nacre.TimeoutKill
		if *in.AutoPause {
			of.OnTimeout = nacre.TimeoutPause
		}
	}
	of.Metadata, of.Env = in.Metadata, in.EnvVars
	of.OwnEnv = in.InheritEnv != nil && !*in.InheritEnv
	return of, nacre.CheckUserMetadata(in.Metadata)
}

// snapshotOf describes a snapshot; its id is its name when that means this one.
func snapshotOf(s nacre.Snapshot, byName bool) snapshot {
	out := snapshot{
		SnapshotID: string(s.ID) + ":" + snapshotTag, Names: []string{},
		ID: string(s.ID), Name: s.Name, Comment: s.Comment,
		SandboxID: string(s.Sandbox), TemplateID: string(s.TemplateID), Memory: !s.FilesOnly, Runtime: string(nacre.RuntimeOf(s.RestoreKey)),
		CPUCount: s.Resources.CPUs, MemoryMB: s.Resources.MemoryMiB, DiskSizeMB: s.Resources.DiskMiB,
		SizeBytes: s.Bytes, DiskBytes: s.DiskBytes, StoppedMS: float64(s.Stopped.Microseconds()) / 1000,
		CreatedAt: timestamp(s.CreatedAt),
	}
	if s.Name != "" {
		full := string(s.TeamID) + "/" + s.Name + ":" + snapshotTag
		out.Names = []string{full}
		if byName {
			out.SnapshotID = full
		}
	}
	if !s.ExpiresAt.IsZero() {
		out.ExpiresAt = timestamp(s.ExpiresAt)
	}
	if !s.LastUsedAt.IsZero() {
		out.LastUsedAt = timestamp(s.LastUsedAt)
	}
	return out
}
