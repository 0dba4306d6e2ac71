package nacre

import (
	"maps"
	"strings"
)

// ReservedMetadata begins the keys of metadata that belong to a dialect: it keeps
// there what the domain does not know, finds sandboxes by it, and neither shows such
// keys as the user's metadata nor takes them from a user.
const ReservedMetadata = "nacre:"

// Labels are the reserved keys that usage is grouped by and sandboxes are found by.
const (
	LabelWorkspace       = ReservedMetadata + "workspace_id"
	LabelProject         = ReservedMetadata + "project_id"
	LabelExternalSpace   = ReservedMetadata + "external_workspace_id"
	LabelExternalUser    = ReservedMetadata + "external_user_id"
	LabelExternalProject = ReservedMetadata + "external_project_id"
)

// LabelRequest names the request that made a sandbox, for one that happens once:
// whoever runs it again after a crash finds the sandbox by it.
const LabelRequest = ReservedMetadata + "request"

// LabelDeployment names the deployment that a sandbox was made for, or that a preview
// shows: such a preview keeps its slug when its sandbox has ended.
const LabelDeployment = ReservedMetadata + "deployment"

// LabelSlug is its owner's second name of a sandbox.
const LabelSlug = ReservedMetadata + "slug"

// CopiedMetadata returns what a copy has of a sandbox's metadata: all but the labels
// that name that one sandbox, or who made it and for what.
func CopiedMetadata(m map[string]string) map[string]string {
	m = maps.Clone(m)
	for _, own := range []string{LabelRequest, LabelDeployment, LabelSlug} {
		delete(m, own)
	}
	return m
}

// LabelRuntime is the one reserved key that a user may give, at a create: clients that
// have no field for it ask for a runtime by it. It is no part of the metadata.
const LabelRuntime = ReservedMetadata + "runtime"

// TakeRuntime returns the runtime that a create's metadata asks for, and the metadata
// without that.
func TakeRuntime(m map[string]string) (RuntimeName, map[string]string) {
	name, ok := m[LabelRuntime]
	if !ok {
		return "", m
	}
	m = maps.Clone(m)
	delete(m, LabelRuntime)
	return RuntimeName(name), m
}

// UserMetadata returns metadata without what is reserved.
func UserMetadata(m map[string]string) map[string]string {
	out := make(map[string]string, len(m))
	for k, v := range m {
		if !strings.HasPrefix(k, ReservedMetadata) {
			out[k] = v
		}
	}
	return out
}

// CheckUserMetadata is CodeInvalid for metadata of a user's that has a reserved key.
func CheckUserMetadata(m map[string]string) error {
	for k := range m {
		if strings.HasPrefix(k, ReservedMetadata) {
			return Invalidf("metadata", "metadata: keys that begin with %q are the server's own; choose another than %.100q", ReservedMetadata, k)
		}
	}
	return nil
}
