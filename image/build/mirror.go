package build

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// ErrMirror is wrapped when a mirror cannot be reached or does not have what
// the recipe asks for.
var ErrMirror = errors.New("the mirror does not answer")

// mirrorTimeout is how long a mirror may take to answer the first request.
// Tests shorten it.
var mirrorTimeout = 15 * time.Second

// aptSource is one archive of apt's configuration.
type aptSource struct {
	uri        string
	suite      string
	components []string
}

// Mirrors are the machine's own archives.
type Mirrors struct {
	Archive  string // of the release itself
	Updates  string // of SUITE-updates; "" if the machine has none
	Security string // of SUITE-security; "" if the machine has none
}

// defaultMirrors is what a machine gets that says nothing of use.
var defaultMirrors = Mirrors{
	Archive:  "http://deb.debian.org/debian",
	Updates:  "http://deb.debian.org/debian",
	Security: "http://deb.debian.org/debian-security",
}

// releases are the suites of Debian and Ubuntu archives (not of third-party
// ones, which share the syntax).
var releases = []string{
	"stable", "oldstable", "testing", "unstable", "sid",
	"buster", "bullseye", "bookworm", "trixie", "forky", "duke",
	"focal", "jammy", "noble", "plucky", "questing",
}

// MachineMirrors reads apt's sources under etc (normally /etc/apt) and picks
// those of the distribution.
func MachineMirrors(etc string) Mirrors {
	var all []aptSource
	names, _ := filepath.Glob(filepath.Join(etc, "sources.list.d", "*"))
	slices.Sort(names)
	for _, name := range append([]string{filepath.Join(etc, "sources.list")}, names...) {
		text, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		switch filepath.Ext(name) {
		case ".list":
			all = append(all, parseList(string(text))...)
		case ".sources":
			all = append(all, parseDeb822(string(text))...)
		}
	}
	var m Mirrors
	for _, s := range all {
		if !slices.Contains(s.components, "main") {
			continue
		}
		set := func(target *string) {
			if *target == "" {
				*target = strings.TrimRight(s.uri, "/")
			}
		}
		release, pocket, _ := strings.Cut(strings.ReplaceAll(s.suite, "/", "-"), "-")
		if !slices.Contains(releases, release) {
			continue
		}
		switch pocket {
		case "":
			set(&m.Archive)
		case "updates":
			// Before bullseye, Debian's security suite was SUITE/updates.
			if strings.Contains(s.suite, "/") {
				set(&m.Security)
			} else {
				set(&m.Updates)
			}
		case "security":
			set(&m.Security)
		}
	}
	if m.Archive == "" {
		return defaultMirrors
	}
	return m
}

// parseList reads the one-line style of sources.list(5).
func parseList(text string) []aptSource {
	var all []aptSource
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb")
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '\t' {
			continue
		}
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			if _, rest, ok = strings.Cut(rest, "]"); !ok {
				continue
			}
		}
		if words := strings.Fields(rest); len(words) >= 3 {
			all = append(all, aptSource{words[0], words[1], words[2:]})
		}
	}
	return all
}

// parseDeb822 reads the deb822 style of sources.list(5).
func parseDeb822(text string) []aptSource {
	var all []aptSource
	stanza := make(map[string]string)
	last := ""
	end := func() {
		if strings.ToLower(stanza["enabled"]) != "no" && slices.Contains(strings.Fields(stanza["types"]), "deb") {
			for uri := range strings.FieldsSeq(stanza["uris"]) {
				for suite := range strings.FieldsSeq(stanza["suites"]) {
					all = append(all, aptSource{uri, suite, strings.Fields(stanza["components"])})
				}
			}
		}
		clear(stanza)
		last = ""
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			end()
		case line[0] == ' ' || line[0] == '\t':
			if last != "" {
				stanza[last] += " " + strings.TrimSpace(line)
			}
		default:
			key, value, ok := strings.Cut(line, ":")
			if ok {
				last = strings.ToLower(strings.TrimSpace(key))
				stanza[last] = strings.TrimSpace(value)
			}
		}
	}
	end()
	return all
}

// sourceLines are the lines of sources.list for a base phase.
func sourceLines(b *Base, machine Mirrors) []string {
	components := strings.Join(b.Components, " ")
	if len(b.Mirrors) > 0 {
		var lines []string
		for _, m := range b.Mirrors {
			if !strings.HasPrefix(m, "deb ") {
				m = fmt.Sprintf("deb %s %s %s", m, b.Suite, components)
			}
			lines = append(lines, m)
		}
		return lines
	}
	lines := []string{fmt.Sprintf("deb %s %s %s", machine.Archive, b.Suite, components)}
	if b.Suite == "sid" || b.Suite == "unstable" {
		return lines
	}
	if machine.Updates != "" {
		lines = append(lines, fmt.Sprintf("deb %s %s-updates %s", machine.Updates, b.Suite, components))
	}
	if machine.Security != "" {
		suite := b.Suite + "-security"
		if b.Suite == "buster" {
			suite = "buster/updates"
		}
		lines = append(lines, fmt.Sprintf("deb %s %s %s", machine.Security, suite, components))
	}
	return lines
}

// checkMirrors asks each archive of the lines for its release file, so that a
// mirror that is down is named at once and not after a tool's retries.
func checkMirrors(ctx context.Context, lines []string) error {
	asked := make(map[string]bool)
	for _, s := range parseList(strings.Join(lines, "\n")) {
		base := strings.TrimRight(s.uri, "/")
		name := base + "/dists/" + s.suite + "/"
		if strings.HasSuffix(s.suite, "/") {
			name = base + "/" + s.suite // a flat archive
		}
		if asked[name] {
			continue
		}
		asked[name] = true
		if err := checkMirror(ctx, base, s.suite, name); err != nil {
			return err
		}
	}
	return nil
}

func checkMirror(ctx context.Context, base, suite, folder string) error {
	scheme, rest, _ := strings.Cut(base, ":")
	switch scheme {
	case "file", "copy":
		local := "/" + strings.TrimLeft(strings.TrimPrefix(folder, scheme+":"), "/")
		for _, name := range []string{"InRelease", "Release"} {
			if _, err := os.Stat(filepath.Join(local, name)); err == nil {
				return nil
			}
		}
		return fmt.Errorf("%w: %s has no suite %s (no Release file in %s)", ErrMirror, base, suite, local)
	case "http", "https":
	default:
		_ = rest
		return nil // apt knows more schemes than this check
	}
	if _, err := url.Parse(base); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMirror, base, err)
	}
	ctx, cancel := context.WithTimeout(ctx, mirrorTimeout)
	defer cancel()
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: mirrorTimeout}).DialContext,
		TLSHandshakeTimeout: mirrorTimeout,
		DisableKeepAlives:   true,
	}
	client := &http.Client{Transport: transport}
	status := ""
	for _, name := range []string{"InRelease", "Release"} {
		request, err := http.NewRequestWithContext(ctx, http.MethodHead, folder+name, nil)
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrMirror, base, err)
		}
		request.Header.Set("User-Agent", "Debian APT-HTTP/1.3 (sidus)")
		answer, err := client.Do(request)
		if err != nil {
			if ctx.Err() != nil && context.Cause(ctx) != context.DeadlineExceeded {
				return context.Cause(ctx)
			}
			var wrapped *url.Error
			if errors.As(err, &wrapped) {
				err = wrapped.Err
			}
			if errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("%w: %s: nothing heard in %v", ErrMirror, base, mirrorTimeout)
			}
			return fmt.Errorf("%w: %s: %w", ErrMirror, base, err)
		}
		answer.Body.Close()
		if answer.StatusCode < 400 || answer.StatusCode == http.StatusMethodNotAllowed {
			return nil
		}
		status = answer.Status
	}
	return fmt.Errorf("%w: %s has no suite %s (%s)", ErrMirror, base, suite, status)
}
