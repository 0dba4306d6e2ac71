package nacre_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/nacrehq/nacre"

// allowed lists the imports of rooms by rooms that ARCHITECTURE.md writes down.
var allowed = map[string][]string{
	"agent":           {"agent/envd"},
	"client":          {"agent/envd"}, // the SDK speaks to guests over the agent's wire
	"api/moru":        {"api"},
	"api/miosa":       {"api"},
	"cmd/nacre-agent": {"*"},
	"cmd/nacre":       {"*"},
	"server":          {"*"},
	"e2e":             {"*"},
	"bench":           {"*"},
}

// TestDependencyRule: the root imports the standard library; rooms import the
// root, internal/* and outside libraries, and not each other. It parses the
// files, for a test that asks the go command can be answered from its cache.
func TestDependencyRule(t *testing.T) {
	files := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); path != "." && (strings.HasPrefix(n, ".") || n == "testdata" || n == "bin" || n == "node_modules") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		files++
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, src, parser.ImportsOnly)
		if err != nil {
			return err
		}
		room := filepath.ToSlash(filepath.Dir(path))
		for _, spec := range f.Imports {
			imp := strings.Trim(spec.Path.Value, `"`)
			if why := forbidden(room, imp, strings.HasSuffix(path, "_test.go")); why != "" {
				t.Errorf("%s imports %s: %s", path, imp, why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 10 {
		t.Fatalf("only %d Go files were read; the walk is broken", files)
	}
}

func forbidden(room, imp string, test bool) string {
	inside := imp == module || strings.HasPrefix(imp, module+"/")
	if room == "." {
		if !inside && strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") {
			return "the root imports the standard library only"
		}
		if inside && !test {
			return "the root imports no room"
		}
		return ""
	}
	if !inside || imp == module {
		return ""
	}
	to := strings.TrimPrefix(imp, module+"/")
	if to == room || strings.HasPrefix(to, "internal/") {
		return ""
	}
	if to == "nacretest" || strings.HasPrefix(to, "nacretest/") {
		if test || strings.HasPrefix(room, "nacretest") || topRoom(room) == "e2e" || room == "bench" {
			return ""
		}
		return "nacretest is for tests"
	}
	if test {
		return "" // a test of the real thing needs its neighbours
	}
	for _, a := range allowed[topRoom(room)] {
		if a == "*" || to == a || strings.HasPrefix(to, a+"/") {
			return ""
		}
	}
	// A room may hold sub-packages of its own.
	if topRoom(to) == topRoom(room) {
		return ""
	}
	return "a room imports no other room"
}

// topRoom maps a folder to the room that it belongs to.
func topRoom(dir string) string {
	for _, two := range []string{"agent/envd", "api/moru", "api/miosa", "cmd/nacre-agent", "cmd/nacre", "runtime/gvisor", "runtime/firecracker"} {
		if dir == two || strings.HasPrefix(dir, two+"/") {
			return two
		}
	}
	first, _, _ := strings.Cut(dir, "/")
	return first
}

// TestDependencyRuleBites: a check that cannot fail is a defect.
func TestDependencyRuleBites(t *testing.T) {
	for _, c := range []struct {
		room, imp string
		ok        bool
	}{
		{".", "fmt", true},
		{".", "golang.org/x/sys/unix", false},
		{".", module + "/control", false},
		{"control", module, true},
		{"control", module + "/internal/undo", true},
		{"control", module + "/node", false},
		{"control", module + "/nacretest", false},
		{"agent", module + "/agent/envd", true},
		{"agent/envd", module + "/agent", false},
		{"api/moru", module + "/api", true},
		{"api", module + "/api/moru", false},
		{"server", module + "/node", true},
		{"edge", "golang.org/x/net/http2", true},
	} {
		if got := forbidden(c.room, c.imp, false) == ""; got != c.ok {
			t.Errorf("%s -> %s: allowed %v, want %v", c.room, c.imp, got, c.ok)
		}
	}
}

// TestPackageComments: every package has one package comment.
func TestPackageComments(t *testing.T) {
	has := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		has[filepath.Dir(path)] = has[filepath.Dir(path)] || f.Doc != nil
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, ok := range has {
		if !ok {
			t.Errorf("package %s has no package comment", dir)
		}
	}
}
