# METADATA
# description: |
#   A negated call reads a field of the input by itself. Where the field is missing the whole rule vanishes, and with
#   it what it denies: say what must hold in a rule of its own, and negate that
# related_resources:
#   - description: three things to know, in the guide
#     ref: policies/README.md
# schemas:
#   - input: schema.regal.ast
package custom.regal.rules.keystile["negated-input"]

import data.regal.ast
import data.regal.result

report contains violation if {
	not of_tests
	some expressions in ast.found.expressions
	some expression in expressions
	expression.negated
	calls(expression.terms)
	some term in (refs(expression.terms) - harmless_refs(expression.terms))
	violation := result.fail(rego.metadata.chain(), result.location(term.value[0]))
}

of_tests if endswith(input.regal.file.name, "_test.rego")

# `not a == b` holds where a is missing, and object.get says what is then.
calls(terms) if {
	is_array(terms)
	name := ast.ref_to_string(terms[0].value)
	not name in {"equal", "eq", "object.get"}
}

refs(node) := {term | walk(node, [_, term]); of_input(term)}

of_input(term) if {
	term.type == "ref"
	term.value[0].value == "input"
	count(term.value) > 1
}

harmless_refs(node) := {term |
	walk(node, [_, inner])
	harmless(inner)
	some term in refs(inner)
}

# What is missing in there is nothing to go through.
harmless(node) if node.type in {"arraycomprehension", "objectcomprehension", "setcomprehension"}

harmless(node) if {
	node.type == "call"
	ast.ref_to_string(node.value[0].value) == "object.get"
}
