package miosa

import (
	"fmt"
	"net/http"
	"path"
	"regexp"
	"strings"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// listFiles lists a directory, as deep as asked.
func (a *API) listFiles(c *api.Call) error {
	depth, err := intParam(c, "depth", 1, 1, maxDepth)
	if err != nil {
		return err
	}
	if c.R.URL.Query().Get("recursive") == "true" {
		depth = maxDepth
	}
	p, entries, err := a.entries(c, depth)
	if err != nil {
		return err
	}
	out := make([]file, 0, len(entries))
	for _, f := range entries {
		out = append(out, fileOf(f))
	}
	return one(c, http.StatusOK, map[string]any{"path": p, "entries": out})
}

func (a *API) entries(c *api.Call, depth int) (p string, out []nacre.FileInfo, err error) {
	if p, err = queryPath(c); err != nil {
		return p, nil, err
	}
	g, err := a.guest(c)
	if err != nil {
		return p, nil, err
	}
	err = asUser(func(user string) error {
		out, err = g.agent.Files().List(c.R.Context(), user, p, depth)
		return err
	})
	return p, out, err
}

// treeNode is a directory with what is in it, or a file.
type treeNode struct {
	file
	Children []*treeNode `json:"children"`
}

// tree answers with a directory as nested nodes.
func (a *API) tree(c *api.Call) error {
	depth, err := intParam(c, "depth", 3, 1, maxDepth)
	if err != nil {
		return err
	}
	p, entries, err := a.entries(c, depth)
	if err != nil {
		return err
	}
	return one(c, http.StatusOK, nest(p, entries))
}

// nest makes a tree of a list in which parents come before their children.
func nest(root string, entries []nacre.FileInfo) *treeNode {
	top := &treeNode{file: file{Name: path.Base(root), Path: root, IsDir: true, Type: "dir"}, Children: []*treeNode{}}
	dirs := map[string]*treeNode{root: top}
	for _, f := range entries {
		n := &treeNode{file: fileOf(f), Children: []*treeNode{}}
		if f.Dir {
			dirs[f.Path] = n
		}
		if parent := dirs[path.Dir(f.Path)]; parent != nil {
			parent.Children = append(parent.Children, n)
		}
	}
	return top
}

// makeDir makes a directory. With recursive, the default, its parents too, and one
// that exists is no error.
func (a *API) makeDir(c *api.Call) error {
	var in struct {
		Path      string `json:"path"`
		Recursive *bool  `json:"recursive"`
		Mode      any    `json:"mode"`
	}
	if err := read(c, &in); err != nil {
		return err
	}
	p, err := guestPath("path", in.Path)
	if err != nil {
		return err
	}
	mode, err := fileMode(in.Mode, false)
	if err != nil {
		return err
	}
	g, err := a.guest(c)
	if err != nil {
		return err
	}
	deep := in.Recursive == nil || *in.Recursive
	if !deep {
		if _, err := g.stat(c, path.Dir(p)); err != nil {
			return err
		}
	}
	err = asUser(func(user string) error {
		_, err := g.agent.Files().MakeDir(c.R.Context(), user, p)
		return err
	})
	if err != nil && !(deep && nacre.IsCode(err, nacre.CodeConflict)) {
		return err
	}
	g.tellFile(p, "mkdir")
	if mode != "" {
		if err := g.tool(c.R.Context(), "chmod", mode, "--", p); err != nil {
			return err
		}
	}
	return g.answerStat(c, http.StatusCreated, p)
}

// answerStat answers with what a path is now.
func (g *guest) answerStat(c *api.Call, status int, p string) error {
	f, err := g.stat(c, p)
	if err != nil {
		return err
	}
	return one(c, status, fileOf(f))
}

var modeForm = regexp.MustCompile(`^(0?o?[0-7]{1,4}|[ugoa]*[-+=][rwxXst]*(,[ugoa]*[-+=][rwxXst]*)*)$`)

// fileMode reads a mode: digits of base eight as a text or a number, or chmod's words.
func fileMode(v any, must bool) (string, error) {
	text := ""
	switch m := v.(type) {
	case nil:
		if must {
			return "", nacre.Invalidf("mode", "mode is missing; it is a text such as \"0644\"")
		}
		return "", nil
	case string:
		text = m
	case float64: // 644 is read as it is written; 420 is 0644 to those who count in ten
		text = fmt.Sprintf("%.0f", m)
		if strings.ContainsAny(text, "89") {
			text = fmt.Sprintf("%o", int(m))
		}
	}
	if !modeForm.MatchString(text) {
		return "", nacre.Invalidf("mode", "mode must be digits of base eight, such as \"0644\"")
	}
	return strings.Replace(text, "o", "", strings.Count(text[:min(2, len(text))], "o")), nil
}

func (a *API) chmod(c *api.Call) error {
	var in struct {
		Path      string `json:"path"`
		Mode      any    `json:"mode"`
		Recursive bool   `json:"recursive"`
	}
	if err := read(c, &in); err != nil {
		return err
	}
	p, err := guestPath("path", in.Path)
	if err != nil {
		return err
	}
	mode, err := fileMode(in.Mode, true)
	if err != nil {
		return err
	}
	g, err := a.guest(c)
	if err != nil {
		return err
	}
	args := []string{mode, "--", p}
	if in.Recursive {
		args = append([]string{"-R"}, args...)
	}
	if err := g.tool(c.R.Context(), "chmod", args...); err != nil {
		return err
	}
	g.tellFile(p, "chmod")
	return g.answerStat(c, http.StatusOK, p)
}

// fromTo is the body of a rename or a copy.
type fromTo struct {
	From      string `json:"from"`
	To        string `json:"to"`
	Recursive *bool  `json:"recursive"` // true when absent
}

// fromTo reads two paths, and finds the guest.
func (a *API) fromTo(c *api.Call) (g *guest, in fromTo, err error) {
	if err = read(c, &in); err != nil {
		return nil, in, err
	}
	if in.From, err = guestPath("from", in.From); err != nil {
		return nil, in, err
	}
	if in.To, err = guestPath("to", in.To); err != nil {
		return nil, in, err
	}
	g, err = a.guest(c)
	return g, in, err
}

func (a *API) rename(c *api.Call) error {
	g, in, err := a.fromTo(c)
	if err != nil {
		return err
	}
	err = asUser(func(user string) error {
		_, err := g.agent.Files().Move(c.R.Context(), user, in.From, in.To)
		return err
	})
	if err != nil {
		return err
	}
	g.tellFile(in.To, "rename")
	return g.answerStat(c, http.StatusOK, in.To)
}

// copyFile copies a file, or a directory with all that is in it.
func (a *API) copyFile(c *api.Call) error {
	g, in, err := a.fromTo(c)
	if err != nil {
		return err
	}
	defer a.busy(c.R.Context(), g.id)()
	f, err := g.stat(c, in.From)
	if err != nil {
		return err
	}
	if f.Dir && in.Recursive != nil && !*in.Recursive {
		return nacre.Invalidf("recursive", "recursive must be true to copy a directory")
	}
	parent := path.Dir(in.To)
	if _, err := g.stat(c, parent); nacre.IsCode(err, nacre.CodeNotFound) {
		err := asUser(func(user string) error {
			_, err := g.agent.Files().MakeDir(c.R.Context(), user, parent)
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := g.tool(c.R.Context(), "cp", "-a", "-T", "--", in.From, in.To); err != nil {
		return err
	}
	g.tellFile(in.To, "copy")
	return g.answerStat(c, http.StatusOK, in.To)
}

// deleteFile deletes a file, or a directory with all that is in it. The path is in
// the body or in the query.
func (a *API) deleteFile(c *api.Call) error {
	var in struct {
		Path string `json:"path"`
	}
	if err := read(c, &in); err != nil {
		return err
	}
	if in.Path == "" {
		in.Path = c.R.URL.Query().Get("path")
	}
	p, err := guestPath("path", in.Path)
	if err != nil {
		return err
	}
	g, err := a.guest(c)
	if err != nil {
		return err
	}
	if _, err := g.stat(c, p); err != nil {
		return err
	}
	err = asUser(func(user string) error { return g.agent.Files().Remove(c.R.Context(), user, p) })
	if err != nil {
		return err
	}
	g.tellFile(p, "delete")
	return c.NoContent()
}
