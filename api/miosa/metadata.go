package miosa

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/nacrehq/nacre"
)

// labels pairs the fields of an attribution with their keys.
func (a *attribution) labels() []struct {
	field, key string
	value      **string
} {
	return []struct {
		field, key string
		value      **string
	}{
		{"workspace_id", nacre.LabelWorkspace, &a.WorkspaceID},
		{"workspace_slug", keyWorkspaceSlug, &a.WorkspaceSlug},
		{"workspace_name", keyWorkspaceName, &a.WorkspaceName},
		{"project_id", nacre.LabelProject, &a.ProjectID},
		{"project_slug", keyProjectSlug, &a.ProjectSlug},
		{"project_name", keyProjectName, &a.ProjectName},
		{"external_workspace_id", nacre.LabelExternalSpace, &a.ExternalSpaceID},
		{"external_user_id", nacre.LabelExternalUser, &a.ExternalUserID},
		{"external_project_id", nacre.LabelExternalProject, &a.ExternalProjectID},
	}
}

// store puts what is given into reserved metadata.
func (a *attribution) store(meta map[string]string) error {
	for _, l := range a.labels() {
		if *l.value == nil || **l.value == "" {
			continue
		}
		v, err := word(l.field, **l.value)
		if err != nil {
			return err
		}
		meta[l.key] = v
	}
	return nil
}

// reserved makes the metadata that keeps what the domain does not know.
func (in *newSandbox) reserved() (map[string]string, error) {
	meta := map[string]string{}
	if err := in.store(meta); err != nil {
		return nil, err
	}
	if in.Size != "" {
		meta[keySize] = in.Size
	}
	if err := setSlug(meta, in.Slug); err != nil {
		return nil, err
	}
	return meta, setTags(meta, in.Tags)
}

func setSlug(meta map[string]string, slug *string) error {
	if slug == nil {
		return nil
	}
	v, err := word("slug", *slug)
	if err != nil {
		return err
	}
	meta[nacre.LabelSlug] = v
	if v == "" {
		delete(meta, nacre.LabelSlug)
	}
	return nil
}

// setTags replaces the tags.
func setTags(meta map[string]string, list tags) error {
	if len(list) > maxTags {
		return nacre.Invalidf("tags", "tags: at most %d are allowed", maxTags)
	}
	maps.DeleteFunc(meta, func(k, _ string) bool { return strings.HasPrefix(k, keyTag) })
	for _, t := range list {
		t, err := word("tags", t)
		if err != nil {
			return err
		}
		if t == "" || strings.Contains(t, ",") || len(keyTag)+len(t) > maxWord {
			return nacre.Invalidf("tags", "tags: a tag has 1 to %d bytes and no comma", maxWord-len(keyTag))
		}
		meta[keyTag+t] = "1"
	}
	return nil
}

func tagsOf(pairs map[string]string) tags {
	out := tags{}
	for _, k := range slices.Sorted(maps.Keys(pairs)) {
		if v := pairs[k]; v != "" {
			k += "=" + v
		}
		out = append(out, k)
	}
	return out
}

// addMetadata adds a user's metadata to reserved one. A value that is no string is
// kept as JSON, and its name noted, so that it comes back as it was.
func addMetadata(meta map[string]string, user map[string]json.RawMessage) error {
	maps.DeleteFunc(meta, func(k, _ string) bool { return !strings.HasPrefix(k, nacre.ReservedMetadata) })
	delete(meta, keyTyped)
	var typed []string
	for k, raw := range user {
		if strings.HasPrefix(k, nacre.ReservedMetadata) {
			return nacre.CheckUserMetadata(map[string]string{k: ""})
		}
		var s string
		if len(raw) > 0 && raw[0] == '"' && json.Unmarshal(raw, &s) == nil {
			meta[k] = s
			continue
		}
		meta[k] = string(raw)
		typed = append(typed, k)
	}
	if len(typed) > 0 {
		slices.Sort(typed)
		meta[keyTyped] = string(encode(typed))
	}
	return nil
}

// takeRuntime returns the runtime that a create's metadata asks for, and the metadata
// without that: no client of the dialect has a field for it.
func takeRuntime(user map[string]json.RawMessage) (name nacre.RuntimeName, rest map[string]json.RawMessage, err error) {
	raw, ok := user[nacre.LabelRuntime]
	if !ok {
		return "", user, nil
	}
	if json.Unmarshal(raw, &name) != nil {
		return "", nil, nacre.Invalidf("metadata", "metadata: %s must be a string, the name of a runtime", nacre.LabelRuntime)
	}
	rest = maps.Clone(user)
	delete(rest, nacre.LabelRuntime)
	return name, rest, nil
}

// userMetadata is the opposite of addMetadata.
func userMetadata(meta map[string]string) map[string]json.RawMessage {
	var typed []string
	_ = json.Unmarshal([]byte(meta[keyTyped]), &typed) // ours; absent: none
	out := map[string]json.RawMessage{}
	for k, v := range nacre.UserMetadata(meta) {
		if slices.Contains(typed, k) && json.Valid([]byte(v)) {
			out[k] = json.RawMessage(v)
		} else {
			out[k] = encode(v)
		}
	}
	return out
}
