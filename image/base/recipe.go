package base

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/nacrehq/nacre"
)

// recipeVersion goes up when the code of a build changes what comes out; the data
// of the recipe counts by itself.
const recipeVersion = 2

// host is where the recipe reads the host's configuration.
type host struct {
	etc string // "/etc"
}

// recipe is everything that decides what is in the image, but for the day's
// versions of the packages.
type recipe struct {
	Version  int
	Arch     string // the distribution's word: "amd64"
	ID       string // of the distribution: "debian"
	Codename string
	Packages []string
	Sources  []source
	Commands []string // run by a shell in the root, once the packages are there
	Files    []file   // of ours, written last
	Users    []account
}

// file is one that the image has from us.
type file struct {
	Path string // below the root
	Mode os.FileMode
	Text string
}

// account is a user with a group of the same name and number.
type account struct {
	Name string
	ID   int
	Home string
}

// packages are installed without what they recommend. Node's npm is by far the
// heaviest (some 400 packages); it is here because people expect it.
func packages() []string {
	return []string{
		"ca-certificates", "curl", "wget", "git", "openssh-client",
		"python3", "python3-pip", "python3-venv", "python-is-python3",
		"nodejs", "npm",
		"gcc", "libc6-dev", "make",
		"sudo", "passwd", "procps", "iproute2", "netcat-traditional",
		"ncurses-bin", "less", "nano", "jq",
		"bzip2", "xz-utils", "zip", "unzip", "tzdata",
	}
}

// dpkgOptions hold while the image is built and in the guest: documentation but
// for licences is left out, and nothing is synced, for a writable layer that does
// not outlive its machine gains nothing by it.
const dpkgOptions = `force-unsafe-io
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/lintian/*
path-exclude=/usr/share/locale/*
path-include=/usr/share/locale/locale.alias
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
`

// profile is Debian's, but that it starts no program: clients run each command
// in a login shell, and one more program took as long as the shell itself.
const profile = `# /etc/profile: for login shells
if [ "${EUID:-$(id -u)}" -eq 0 ]; then
  PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
else
  PATH="/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
fi
export PATH

if [ "${PS1-}" ]; then
  if [ "${BASH-}" ] && [ "$BASH" != "/bin/sh" ]; then
    if [ -f /etc/bash.bashrc ]; then
      . /etc/bash.bashrc
    fi
  elif [ "${EUID:-$(id -u)}" -eq 0 ]; then
    PS1='# '
  else
    PS1='$ '
  fi
fi

for i in /etc/profile.d/*.sh; do
  if [ -r "$i" ]; then
    . "$i"
  fi
done
unset i
`

// virtualEnv makes the Python environment that "sandbox" works in. Its compiled
// modules do not name the times of their sources, which are settled afterwards.
const virtualEnv = `python3 -m venv /opt/venv &&
find /opt/venv -name __pycache__ -prune -exec rm -rf {} + &&
python3 -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib &&
chown -R 1000:1000 /opt/venv`

// localeArchive puts the locale that every shell sets into the archive that the C
// library looks in first: otherwise each program that sets it opens two dozen files,
// which is a quarter of all that a login shell asks the kernel for.
const localeArchive = `[ ! -d /usr/lib/locale/C.utf8 ] || localedef --add-to-archive --quiet /usr/lib/locale/C.utf8`

// venvProfile puts that environment first on the PATH of "sandbox", unless the PATH
// was chosen. A shell that is no login shell reads it when BASH_ENV says so.
const venvProfile = `if [ "$HOME" = /home/sandbox ] && [ -d /opt/venv/bin ]; then
  case "$PATH" in
    /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin|/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games)
      export PATH="/opt/venv/bin:$PATH" VIRTUAL_ENV=/opt/venv ;;
  esac
fi
unset BASH_ENV
`

// newRecipe reads what the host's own system is.
func newRecipe(h host) (recipe, error) {
	text, err := os.ReadFile(filepath.Join(h.etc, "os-release"))
	if err != nil {
		return recipe{}, nacre.Wrap(nacre.CodeUnsupported, err, "the base image can be built on Debian-like hosts only; import a finished image instead")
	}
	release := parseOSRelease(string(text))
	r := recipe{Version: recipeVersion, ID: release["ID"], Codename: release["VERSION_CODENAME"], Packages: packages()}
	if r.Arch = debianArch(runtime.GOARCH); r.Arch == "" || r.ID == "" || r.Codename == "" {
		return recipe{}, nacre.Errorf(nacre.CodeUnsupported, "the base image can be built on Debian-like hosts only; import a finished image instead")
	}
	all, err := readSources(filepath.Join(h.etc, "apt"))
	if err != nil {
		return recipe{}, fmt.Errorf("read the host's apt sources: %w", err)
	}
	r.Sources = distribution(all, r.ID, r.Codename, r.Arch)
	if len(r.Sources) == 0 {
		return recipe{}, nacre.Errorf(nacre.CodeUnsupported,
			"no apt source of %s %s was found on this host; add the distribution's own, or import a finished image", r.ID, r.Codename)
	}
	// One user with two names and homes: the clients of one service expect the one,
	// those of another the other, and what either makes is both's.
	r.Users = []account{{Name: "user", ID: 1000, Home: "/home/user"}, {Name: "sandbox", ID: 1000, Home: "/home/sandbox"}}
	r.Commands = []string{virtualEnv, localeArchive, "mkdir -p /workspace && chown 1000:1000 /workspace"}
	r.Files = guestFiles(r)
	return r, nil
}

// guestFiles are the files of ours. The agent rewrites hosts, hostname and
// resolv.conf when a machine starts; they are plain files so that it can.
func guestFiles(r recipe) []file {
	return []file{
		{"etc/hostname", 0o644, "sandbox\n"},
		{"etc/hosts", 0o644, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"},
		{"etc/resolv.conf", 0o644, ""},
		{"etc/machine-id", 0o644, ""},
		{"etc/timezone", 0o644, "Etc/UTC\n"},
		{"etc/default/locale", 0o644, "LANG=C.UTF-8\n"},
		{"etc/profile", 0o644, profile},
		{"etc/profile.d/locale.sh", 0o644, "export LANG=\"${LANG:-C.UTF-8}\"\n"},
		{"etc/profile.d/venv.sh", 0o644, venvProfile},
		{"etc/sudoers.d/user", 0o440, "user ALL=(ALL:ALL) NOPASSWD:ALL\n"},
		{"etc/dpkg/dpkg.cfg.d/nacre", 0o644, dpkgOptions},
		{"etc/apt/apt.conf.d/90nacre", 0o644, "Acquire::Languages \"none\";\n"},
		{"etc/apt/sources.list.d/" + r.ID + ".sources", 0o644, guestSources(r.Sources)},
		// No service is started by an installation: there is no service manager.
		{"usr/sbin/policy-rc.d", 0o755, "#!/bin/sh\nexit 101\n"},
	}
}

// hash names the recipe: 32 hexadecimal digits.
func (r recipe) hash() string {
	var b bytes.Buffer
	// Plain strings and numbers always encode.
	_ = json.NewEncoder(&b).Encode(struct {
		recipe
		Sources string // without credentials: a new password is no new image
		Dpkg    string
	}{r, guestSources(r.Sources), dpkgOptions})
	sum := sha256.Sum256(b.Bytes())
	return hex.EncodeToString(sum[:16])
}

// debianArch is the distribution's word for Go's, "" for one that gVisor does not run on.
func debianArch(goarch string) string {
	switch goarch {
	case "amd64", "arm64":
		return goarch
	}
	return ""
}

// parseOSRelease reads os-release(5).
func parseOSRelease(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.HasPrefix(key, "#") {
			continue
		}
		out[key] = strings.Trim(value, `"'`)
	}
	return out
}
