package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
)

// banner prints what a person needs to try the demonstration: addresses, keys and
// commands to paste.
func (d *dev) banner(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "\nKeystile is ready.\n\n")
	fmt.Fprintf(&b, "  check API   %s\n  operations  %s/readyz  %s/metrics\n", d.info.URL, d.info.OpsURL, d.info.OpsURL)
	fmt.Fprintf(&b, "  data        %s (secrets in secrets.json)\n", d.options.dir)
	if d.redis == nil {
		b.WriteString("  limits      counted in this process (mode local): there is no redis-server on this machine\n")
	}
	b.WriteString("\n  key          organization  environment  scopes\n")
	for _, k := range demoKeys() {
		scopes := make([]string, len(k.scopes))
		for i, s := range k.scopes {
			scopes[i] = string(s)
		}
		fmt.Fprintf(&b, "  %-11s  %-12s  %-11s  %s\n               %s\n",
			k.name, k.organization, k.environment, strings.Join(scopes, " "), cmp.Or(d.info.Keys[k.name], "deleted with its organization"))
	}
	if deleted := d.deleted(); len(deleted) > 0 {
		was := "was deleted and stays so"
		if len(deleted) > 1 {
			was = "were deleted and stay so"
		}
		fmt.Fprintf(&b, "\n  %s %s; remove %s to start afresh, or name another directory with --data\n",
			strings.Join(deleted, " and "), was, d.options.dir)
	}
	if d.options.examples != "" {
		d.exampleCurls(&b)
	} else {
		d.checkCurl(&b)
	}
	b.WriteString("\nCtrl-C stops everything.\n")
	_, err := io.WriteString(w, b.String())
	return err //nolint:wrapcheck // the caller does
}

// deleted are the demonstration's organizations that somebody has deleted.
func (d *dev) deleted() []string {
	var names []string
	for name, id := range d.info.Organizations {
		if id == "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// firstKey is the first of the keys that is there still; "" when none is.
func (d *dev) firstKey(names ...string) string {
	for _, name := range names {
		if key := d.info.Keys[name]; key != "" {
			return key
		}
	}
	return ""
}

func (d *dev) exampleCurls(b *strings.Builder) {
	tickets := "http://" + d.options.ticketsListen + "/api/v1/tickets"
	fmt.Fprintf(b, "\n  tickets app    http://%s\n  customers app  http://%s\n", d.options.ticketsListen, d.options.customersListen)
	allowed := d.firstKey("acme_live", "globex_live")
	if allowed == "" {
		return
	}
	fmt.Fprintf(b, "\nAllowed:\n\n  curl -i %s \\\n    -H \"Authorization: Bearer %s\"\n", tickets, allowed)
	if reading := d.firstKey("acme_read"); reading != "" {
		fmt.Fprintf(b, "\nA missing scope (403 that names it):\n\n  curl -i %s \\\n    -H \"Authorization: Bearer %s\" \\\n"+
			"    -H \"Content-Type: application/json\" -d '{\"subject\":\"Hello\",\"body\":\"First ticket\"}'\n",
			tickets, reading)
	}
	fmt.Fprintf(b, "\nThe limit (100 a minute, the rest is 429):\n\n  curl -s -o /dev/null -w '%%{http_code}\\n' \\\n"+
		"    -H \"Authorization: Bearer %s\" \\\n    '%s?n=[1-110]' | sort | uniq -c\n", d.firstKey("globex_live", "acme_live"), tickets)
}

func (d *dev) checkCurl(b *strings.Builder) {
	key := d.firstKey("acme_live", "globex_live")
	if key == "" {
		return
	}
	fmt.Fprintf(b, "\nAsk as the tickets app would:\n\n  curl -i %s/v1/check \\\n    -H \"Authorization: Bearer %s\" \\\n"+
		"    -H \"Content-Type: application/json\" \\\n    -d '{\"key\":\"%s\",\"method\":\"GET\",\"path\":\"/api/v1/tickets\"}'\n",
		d.info.URL, d.secrets.Callers["tickets"], key)
}
