# METADATA
# description: |
#   A rule that gives a reason or a finding has METADATA of its own, whose description begins with its code
#   ("code. When it is given."), and the code stands there as a text: clients, tables and explanations know it by that
# related_resources:
#   - description: the table of reasons, in the guide
#     ref: policies/README.md
# schemas:
#   - input: schema.regal.ast
package custom.regal.rules.keystile["reason-metadata"]

import data.regal.ast
import data.regal.result

# A code that is worked out is one that nobody can look up.
report contains violation if {
	some rule in giving
	not code_of(rule)
	not passes_on(rule)
	violation := result.fail(rego.metadata.chain(), result.location(rule.head.ref[0]))
}

report contains violation if {
	some rule in giving
	code := code_of(rule)
	not documented(rule, code)
	violation := result.fail(rego.metadata.chain(), result.location(rule.head.ref[0]))
}

of_tests if endswith(input.regal.file.name, "_test.rego")

giving contains rule if {
	not of_tests
	some rule in input.rules
	count(rule.head.ref) == 1
	rule.head.ref[0].value in {"deny", "finding", "reason"}
}

code_of(rule) := code if {
	some [name, value] in rule.head.key.value
	name.value == "code"
	value.type == "string"
	code := value.value
}

# The check hands on what the rules give.
passes_on(rule) if {
	rule.head.key.type == "var"
	ast.package_name == "keystile.check"
}

documented(rule, code) if {
	some annotation in rule.annotations
	annotation.title != ""
	startswith(annotation.description, sprintf("%s. ", [code]))
}
