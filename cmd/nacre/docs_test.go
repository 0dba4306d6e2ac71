package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/nacrehq/nacre/server"
)

var update = flag.Bool("update", false, "rewrite the pages in docs that are made from the code")

// TestDocsAreTrue: the pages on the command and on the settings are what the
// code says. `go test ./cmd/nacre -update` writes them anew.
func TestDocsAreTrue(t *testing.T) {
	for path, want := range map[string]string{
		"../../docs/cli.md":           cliPage(newRoot()),
		"../../docs/configuration.md": configurationPage(),
	} {
		if *update {
			if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("%s is not what the code says; run: go test ./cmd/nacre -run TestDocsAreTrue -update", path)
		}
	}
}

// TestFlagsNameTheirValues: what stands between backquotes in a flag's text is what help
// calls its value, so a sentence or a command does not stand there.
func TestFlagsNameTheirValues(t *testing.T) {
	var look func(*cobra.Command)
	look = func(c *cobra.Command) {
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if name, _ := pflag.UnquoteUsage(f); strings.Contains(name, " ") {
				t.Errorf("%s --help shows --%s %s", c.CommandPath(), f.Name, name)
			}
		})
		for _, sub := range c.Commands() {
			look(sub)
		}
	}
	look(newRoot())
}

// TestEveryLineOfSnapshotsPageIsATest: what docs/snapshots.md promises is held by
// the test that the line names.
func TestEveryLineOfSnapshotsPageIsATest(t *testing.T) {
	page, err := os.ReadFile("../../docs/snapshots.md")
	if err != nil {
		t.Fatal(err)
	}
	lines, within := 0, false
	for line := range strings.Lines(string(page)) {
		line = strings.TrimSpace(line)
		switch {
		case !strings.HasPrefix(line, "|"):
			within = false
			continue
		case line == "| what | test |":
			within = true
			continue
		case !within || strings.HasPrefix(line, "|---"):
			continue
		}
		lines++
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		file, name, ok := strings.Cut(strings.Trim(cells[len(cells)-1], "`"), ": ")
		found := false
		for _, path := range testFiles(t, file) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			found = found || strings.Contains(string(text), "def "+name+"(") || strings.Contains(string(text), "func "+name+"(")
		}
		if !ok || !found {
			t.Errorf("no such test: %s", line)
		}
	}
	if lines < 35 {
		t.Errorf("only %d lines with a test were found", lines)
	}
}

// testFiles finds what the page calls a test file: by its name, or all of a folder.
func testFiles(t *testing.T, name string) []string {
	patterns := []string{"../../e2e/python/" + name, "../../e2e/" + name, "../../client/" + name, "../../edge/" + name}
	if !strings.Contains(name, ".") {
		patterns = []string{"../../" + name + "/*_test.go"}
	}
	var out []string
	for _, p := range patterns {
		files, err := filepath.Glob(p)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, files...)
	}
	return out
}

func cliPage(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString("# The command\n\n" + root.Long + "\n\nEvery command takes these:\n\n" + flagTable(root.PersistentFlags()))
	for _, c := range root.Commands() {
		if c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		writeCommand(&b, c, "##")
	}
	return b.String()
}

func writeCommand(b *strings.Builder, c *cobra.Command, heading string) {
	fmt.Fprintf(b, "\n%s %s\n\n", heading, c.CommandPath())
	text := c.Long
	if text == "" {
		text = c.Short + "."
	}
	fmt.Fprintf(b, "    %s\n\n%s\n", c.UseLine(), text)
	if c.Example != "" {
		fmt.Fprintf(b, "\n    %s\n", strings.ReplaceAll(strings.TrimSpace(c.Example), "\n  ", "\n    "))
	}
	if c.Name() == "up" || c.Name() == "doctor" {
		b.WriteString("\nIts flags are the settings of [configuration.md](configuration.md).\n")
	} else if table := flagTable(c.LocalNonPersistentFlags()); table != "" {
		b.WriteString("\n" + table)
	}
	for _, sub := range c.Commands() {
		writeCommand(b, sub, heading+"#")
	}
}

func flagTable(fs *pflag.FlagSet) string {
	var rows strings.Builder
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		fmt.Fprintf(&rows, "| `%s` | %s |\n", name, strings.ReplaceAll(f.Usage, "|", "\\|"))
	})
	if rows.Len() == 0 {
		return ""
	}
	return "| flag | meaning |\n|---|---|\n" + rows.String()
}

func configurationPage() string {
	return "# Configuration\n\nNothing needs to be configured. Every setting is a flag of `nacre up` (`--memory-mib 2048`), a variable\n" +
		"(`NACRE_MEMORY_MIB=2048`) and a key of `DATA-DIR/nacre.toml` (`memory_mib = 2048`), or of the file that `--config` names;\n" +
		"the flag wins over the variable, the variable over the file. `nacre config` prints this file:\n\n```toml\n" + server.Example() + "```\n"
}
