package pxe

import (
	"bytes"
	"embed"
	"fmt"
	"strings"
	"text/template"
)

//go:embed templates
var files embed.FS

var templates = template.Must(template.New("").ParseFS(files, "templates/*.tmpl"))

// Render returns the configuration of loader for c. The error wraps
// ErrUnrenderable if a value of c would be read as something else.
func Render(loader Loader, c Config) ([]byte, error) {
	if err := c.validate(loader); err != nil {
		return nil, err
	}
	page := page{Config: c, Screen: what(c), Kernel: c.KernelPath, Initrd: c.InitrdPath, Args: c.CommandLine, Again: FileName(loader, c.MAC)}
	switch loader {
	case PXELINUX:
	case LPXELINUX:
		page.Kernel, page.Initrd = c.KernelURL, c.InitrdURL
	case IPXE:
		page.Kernel, page.Initrd = c.KernelURL, c.InitrdURL
		if err := checkIPXE(c.CommandLine); err != nil {
			return nil, err
		}
	case GRUB:
		// GRUB would put a backslash before each of them.
		if strings.ContainsAny(c.CommandLine, `'"\`) {
			return nil, fmt.Errorf("command line: %w: GRUB cannot pass on quotes and backslashes", ErrUnrenderable)
		}
		page.Args = quoteGRUB(c.CommandLine)
	default:
		return nil, fmt.Errorf("loader %q: %w: it is not known", loader, ErrUnrenderable)
	}
	return execute(string(family(loader))+".tmpl", page)
}

// RenderNothing returns the configuration of loader for a machine that has
// nothing to boot: it shows the reason, and goes on from the local disk or
// asks again. subject is whom it is about, a hardware address or a name;
// retry is what is asked for again: the name of the configuration file on the
// TFTP server for PXELINUX and GRUB, the address of the script for iPXE.
// Characters that would not show are replaced.
func RenderNothing(loader Loader, subject, retry string, n *Nothing) ([]byte, error) {
	if err := checkLine("address to ask again", retry); err != nil {
		return nil, err
	}
	if strings.ContainsAny(retry, " \t$'\"\\{}") {
		return nil, fmt.Errorf("address to ask again %q: %w", retry, ErrUnrenderable)
	}
	page := page{
		Screen: clean("nothing to boot for " + subject + ": " + n.Reason),
		Retry:  retry,
		Local:  n.Then == ThenLocal || retry == "",
		Wait:   int(n.wait().Seconds()),
	}
	if loader == IPXE && retry != "" {
		if err := checkURL("address to ask again", retry); err != nil {
			return nil, err
		}
	}
	switch loader {
	case PXELINUX, LPXELINUX, IPXE, GRUB:
		return execute(string(family(loader))+"-nothing.tmpl", page)
	}
	return nil, fmt.Errorf("loader %q: %w: it is not known", loader, ErrUnrenderable)
}

// RenderWho returns the iPXE script of a machine that has not said who it
// is: it asks again under base, with the address of its card.
func RenderWho(base string) ([]byte, error) {
	if err := checkURL("base address", base); err != nil {
		return nil, err
	}
	return execute("ipxe-who.tmpl", page{Retry: strings.TrimSuffix(base, "/") + scriptPath})
}

type page struct {
	Config
	Screen         string
	Kernel, Initrd string
	Args           string
	Again          string // the configuration file itself
	Retry          string
	Local          bool
	Wait           int // seconds
}

func execute(name string, p page) ([]byte, error) {
	var out bytes.Buffer
	if err := templates.ExecuteTemplate(&out, name, p); err != nil {
		return nil, fmt.Errorf("rendering %s: %w", name, err)
	}
	return out.Bytes(), nil
}

func family(l Loader) Loader {
	if l == LPXELINUX {
		return PXELINUX
	}
	return l
}

// what says on the screen which machine boots what.
func what(c Config) string {
	who, title := c.Node, c.Title
	if who == "" {
		who = c.MAC.String()
	}
	if title == "" {
		title = "snapshot " + string(c.Snapshot)
	}
	return clean(who + " boots " + title)
}

// clean makes text fit for a screen of a boot loader, whichever it is: what
// is not plain ASCII, or would mean something to one of them, is replaced.
func clean(text string) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune(" .,:-_/@()[]=+%#", r):
			return r
		case r == ';':
			return ','
		case r == '\'' || r == '"' || r == '`':
			return -1
		}
		return '?'
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > 300 {
		text = text[:297] + "..."
	}
	return text
}

// checkIPXE refuses what iPXE would take for a variable or an operator: it
// has no way to quote.
func checkIPXE(line string) error {
	if strings.Contains(line, "${") {
		return fmt.Errorf("command line: %w: iPXE would replace ${ in it", ErrUnrenderable)
	}
	for _, w := range strings.Fields(line) {
		if w == "||" || w == "&&" || w == ";" {
			return fmt.Errorf("command line: %w: iPXE takes %s for an operator", ErrUnrenderable, w)
		}
	}
	return nil
}

// quoteGRUB puts each word in single quotes, in which nothing has a meaning.
func quoteGRUB(line string) string {
	words := strings.Fields(line)
	for i, w := range words {
		words[i] = "'" + w + "'"
	}
	return strings.Join(words, " ")
}

// FileName is the name of loader's configuration of one machine on the TFTP
// server, or "" if it has none there.
func FileName(loader Loader, mac []byte) string {
	if len(mac) != 6 {
		return ""
	}
	switch loader {
	case PXELINUX, LPXELINUX:
		return "pxelinux.cfg/01-" + Hyphens(mac)
	case GRUB:
		return "grub/grub.cfg-01-" + Hyphens(mac)
	}
	return ""
}

// ScriptURL is the address of the iPXE script of one machine under the base
// address of the HTTP server.
func ScriptURL(base string, mac []byte) string {
	return strings.TrimSuffix(base, "/") + scriptPath + "/" + Hyphens(mac)
}

const scriptPath = "/v1/ipxe"

// Hyphens writes a hardware address as aa-bb-cc-dd-ee-ff.
func Hyphens(mac []byte) string {
	return strings.ReplaceAll(fmt.Sprintf("% x", mac), " ", "-")
}
