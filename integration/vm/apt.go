package vm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// suite is one selection of the Debian archive.
type suite struct {
	name    string   // folder in the cache
	suites  []string // Suites of the source entry
	target  string   // preferred suite (apt's -t), empty for none
	expired bool     // accept an index whose validity ended (sid is refreshed every 6 h; a mirror may lag)
}

var (
	bookworm  = suite{name: "bookworm", suites: []string{"bookworm"}}
	backports = suite{name: "bookworm-backports", suites: []string{"bookworm", "bookworm-backports"}, target: "bookworm-backports"}
	trixie    = suite{name: "trixie", suites: []string{"trixie"}}
	sid       = suite{name: "sid", suites: []string{"sid"}, expired: true}
)

// mirror is the archive that every package comes from. Packages are accepted
// only with a chain of signatures from keyring, so plain HTTP is enough.
const (
	mirror  = "http://deb.debian.org/debian"
	keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
)

// apt is a private apt: its own lists, its own (empty) package database.
// Because the database is empty, a request resolves to the package and
// everything that it needs, the C library included: the result runs on a
// machine that has none of it.
type apt struct {
	cache *Cache
	suite suite
	dir   string
}

func (c *Cache) apt(s suite) *apt { return &apt{cache: c, suite: s, dir: c.path("apt", s.name)} }

// update prepares the folder and fetches the package index, once per process
// tree: an index that is less than a day old is used again.
func (a *apt) update(ctx context.Context) error {
	stamp := filepath.Join(a.dir, "updated")
	if st, err := os.Stat(stamp); err == nil && time.Since(st.ModTime()) < 24*time.Hour {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("fetch packages: %w: the lab needs a Debian (or Ubuntu) host with apt-get, or a filled cache in $%s", err, EnvCache)
	}
	if _, err := os.Stat(keyring); err != nil {
		return fmt.Errorf("fetch packages: %w: install the package debian-archive-keyring", err)
	}
	for _, d := range []string{"etc/sources", "state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return fmt.Errorf("private apt: %w", err)
		}
	}
	files := map[string]string{
		"status":                  "",
		"apt.conf":                a.config(ctx),
		"etc/sources/lab.sources": fmt.Sprintf("Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n", mirror, strings.Join(a.suite.suites, " "), keyring),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(a.dir, name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("private apt: %w", err)
		}
	}
	a.cache.logf("fetching the package index of Debian %s", a.suite.name)
	if out, err := a.run(ctx, a.dir, "apt-get", "update", "-q", "-o", "APT::Update::Error-Mode=any"); err != nil {
		return fmt.Errorf("fetch the package index of Debian %s from %s (is the network there? a proxy is taken from the host's apt settings and from $http_proxy): %w\n%s", a.suite.name, mirror, err, tail(out, 10))
	}
	return os.WriteFile(stamp, nil, 0o644)
}

// config renders apt.conf. The host's own settings are hidden, except how to
// reach the network.
func (a *apt) config(ctx context.Context) string {
	var b strings.Builder
	set := func(key, value string) { fmt.Fprintf(&b, "%s %q;\n", key, value) }
	set("Dir", a.dir+"/")
	set("Dir::State", a.dir+"/state/")
	set("Dir::State::lists", a.dir+"/state/lists/")
	set("Dir::State::status", a.dir+"/status")
	set("Dir::Cache", a.dir+"/cache/")
	set("Dir::Etc", a.dir+"/etc/")
	set("Dir::Etc::sourceparts", a.dir+"/etc/sources/")
	for _, k := range []string{"main", "parts", "sourcelist", "trusted", "trustedparts", "preferences", "preferencesparts"} {
		set("Dir::Etc::"+k, "/dev/null")
	}
	set("Dir::Cache::pkgcache", "") // 100 MB a suite that would be used once
	set("Dir::Cache::srcpkgcache", "")
	set("Acquire::Languages", "none")
	set("Acquire::Retries", "3")
	set("APT::Architecture", "amd64")
	set("APT::Install-Recommends", "false")
	// The cache may be a folder that apt's unprivileged user cannot reach.
	if os.Geteuid() == 0 {
		set("APT::Sandbox::User", "root")
	}
	if a.suite.expired {
		set("Acquire::Check-Valid-Until", "false")
	}
	// Proxies of the host: a private Dir::Etc::parts hides them.
	cmd := exec.CommandContext(ctx, "apt-config", "dump", "Acquire")
	if out, err := cmd.Output(); err == nil {
		for line := range strings.Lines(string(out)) {
			if low := strings.ToLower(line); strings.HasPrefix(low, "acquire::http") && strings.HasSuffix(strings.TrimSpace(line), ";") {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

// run calls a tool of the apt family on the private database and returns what
// it said.
func (a *apt) run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "APT_CONFIG="+filepath.Join(a.dir, "apt.conf"), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.Bytes(), err
}

// unpack fetches packages, with all that they depend on if closure is set,
// and unpacks them below dir.
func (a *apt) unpack(ctx context.Context, dir, what string, closure bool, packages ...string) error {
	if err := a.update(ctx); err != nil {
		return err
	}
	debs := dir + ".debs"
	if err := os.RemoveAll(debs); err != nil {
		return fmt.Errorf("fetch %s: %w", what, err)
	}
	if err := os.MkdirAll(filepath.Join(debs, "partial"), 0o755); err != nil {
		return fmt.Errorf("fetch %s: %w", what, err)
	}
	defer os.RemoveAll(debs)
	var args []string
	if closure {
		args = []string{"install", "--download-only", "-y", "-q", "-o", "Dir::Cache::archives=" + debs}
	} else {
		args = []string{"download", "-q"}
	}
	if a.suite.target != "" {
		args = append(args, "-t", a.suite.target)
	}
	args = append(args, packages...)
	size, count := a.size(ctx, closure, packages)
	a.cache.logf("fetching %s: %d packages, %.0f MB (once; kept in %s)", what, count, float64(size)/1e6, a.cache.dir)
	done := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		a.progress(done, debs, what, size)
	}()
	out, err := a.run(ctx, debs, "apt-get", args...)
	close(done)
	<-stopped
	if err != nil {
		return fmt.Errorf("fetch %s from %s: %w\n%s", what, mirror, err, tail(out, 10))
	}
	found, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil || len(found) == 0 {
		return fmt.Errorf("fetch %s: apt-get delivered no package\n%s", what, tail(out, 10))
	}
	a.cache.logf("unpacking %s", what)
	for _, deb := range found {
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", deb, dir).CombinedOutput(); err != nil {
			return fmt.Errorf("unpack %s: %w\n%s", filepath.Base(deb), err, tail(out, 5))
		}
	}
	return nil
}

// size asks apt how much it is going to fetch.
func (a *apt) size(ctx context.Context, closure bool, packages []string) (bytes int64, count int) {
	args := []string{"install", "--print-uris", "-y", "-q"}
	if !closure {
		args = []string{"download", "--print-uris", "-q"}
	}
	if a.suite.target != "" {
		args = append(args, "-t", a.suite.target)
	}
	out, err := a.run(ctx, a.dir, "apt-get", append(args, packages...)...)
	if err != nil {
		return 0, len(packages) // the fetch itself tells what is wrong
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line) // 'URI' FILE SIZE HASH
		var n int64
		if len(f) >= 3 && strings.HasPrefix(f[0], "'") {
			if _, err := fmt.Sscan(f[2], &n); err == nil {
				bytes += n
				count++
			}
		}
	}
	return bytes, count
}

// progressEvery is the time between two lines of a slow download.
const progressEvery = 3 * time.Second

// progress says every few seconds how much of total has arrived in dir.
func (a *apt) progress(done <-chan struct{}, dir, what string, total int64) {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			var have int64
			filepath.Walk(dir, func(_ string, fi os.FileInfo, err error) error { //nolint:errcheck // only a progress line
				if err == nil && fi.Mode().IsRegular() {
					have += fi.Size()
				}
				return nil
			})
			a.cache.logf("  %s: %.1f of %.0f MB", what, float64(have)/1e6, float64(total)/1e6)
		}
	}
}

// depends lists the packages that pkg depends on directly.
func (a *apt) depends(ctx context.Context, pkg string) ([]string, error) {
	if err := a.update(ctx); err != nil {
		return nil, err
	}
	out, err := a.run(ctx, a.dir, "apt-cache", "depends", "--important", pkg)
	if err != nil {
		return nil, fmt.Errorf("dependencies of %s: %w\n%s", pkg, err, tail(out, 5))
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		line = strings.TrimLeft(strings.TrimSpace(line), "|")
		if name, ok := strings.CutPrefix(line, "Depends: "); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

// tail returns the last n lines of text, for error messages.
func tail(text []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}
