# METADATA
# title: Findings
# description: |
#   Judges how one key was used in a window: what it has and does not need, and what it does and should not. Its
#   input is evidence without names and times, rounded down to `steps` of data; {figures} in texts are put in
#   afterwards, exactly.
# scope: package
# labels:
#   area: findings
# schemas:
#   - input: schema.findings
package keystile.findings

# METADATA
# title: Findings
# description: |
#   All that is found, and the kinds for which there is not enough evidence. Kinds that data turns off are in neither.
# entrypoint: true
findings := {"findings": told, "not_enough_evidence": left_open} # regal ignore:rule-name-repeats-package

told := [object.union(found, {"severity": severity(found.code)}) |
	some found in finding
	severity(found.code) != "off"
]

left_open := [code |
	some code in undecided
	severity(code) != "off"
]

severity(code) := object.get(weights, code, "medium")

# METADATA
# title: Undecided
# description: The kinds that would be found if the window were long enough to say so.
# scope: document
undecided contains "unused_key" if {
	usable
	key_without_use
	not covers("unused")
}

undecided contains "unused_scope" if {
	usable
	not covers("unused")
	some scope in input.scopes
	scope_without_use(scope)
}

undecided contains "write_never_used" if {
	usable
	count(writes_without_use) > 0
	not covers("unused")
}

undecided contains "rarely_used_scope" if {
	usable
	not covers("rarely_used")
	some scope in input.scopes
	seldom(scope)
}

# METADATA
# title: Usable
# description: Whether the key can be used at all. Of one that cannot, only calls that go on are worth a word.
usable if input.key.state == "active"

# METADATA
# title: Covers
# description: Whether the window covers enough days to say what was not used.
covers(kind) if input.key.covered_days >= least[kind].covered_days

# METADATA
# title: Confidence
# description: How much a window carries in which something was not seen.
# scope: document
default confidence := "medium"

confidence := "high" if covers("high_confidence")

# What stands in data.yaml.

# regal ignore:unresolved-reference
weights := data.keystile.findings.severities

# regal ignore:unresolved-reference
least := data.keystile.findings.thresholds

# regal ignore:unresolved-reference
steps_of := data.keystile.findings.steps

# regal ignore:unresolved-reference
changing := data.keystile.findings.write_verbs
