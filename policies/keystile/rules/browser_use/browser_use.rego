# METADATA
# title: Keys in browsers
# description: A live key in a browser is a key that everyone can read. Off until data says otherwise.
# scope: package
# labels:
#   area: rules
package keystile.rules.browser_use

# METADATA
# title: Key used in a browser
# description: browser_use. A live key came from a browser, and `enabled` is true in this folder's data.
# labels:
#   code: browser_use
deny contains {
	"code": "browser_use",
	"message": "A live key must not be used in a browser; call the API from your server.",
} if {
	input.request.browser
	input.key.environment == "live"
	data.keystile.rules.browser_use.enabled == true
}
