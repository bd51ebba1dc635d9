# METADATA
# title: Conventions
# description: |
#   Holds the METADATA of a policy to what readers and tools count on. Its input is what
#   `opa inspect --annotations --format json` says of the policy, so it sees what every other tool sees.
# scope: package
package conventions

# METADATA
# title: Report
# description: A line a violation, as editors read it; empty for a policy that keeps the conventions.
# entrypoint: true
report := sort({sprintf("%s:%d: %s", [v.file, v.line, v.message]) | some v in violation})

# METADATA
# title: Nothing looked at
# description: What is not there keeps every convention.
violation contains {
	"file": ".",
	"line": 0,
	"message": "opa inspect names no package with METADATA; was it given --annotations?",
} if {
	count(annotated) == 0
}

# METADATA
# title: Package without METADATA
# description: Tests explain themselves by their names, and need none.
violation contains {"file": file, "line": 1, "message": message} if {
	some name, file in packages
	not name in described
	message := sprintf("the package %s has no METADATA of scope package (title, description, labels)", [name])
}

# METADATA
# title: Package not described
violation contains {"file": a.file, "line": a.line, "message": message} if {
	some a in annotated
	of_package(a)
	some field in {"title", "description", "labels"}
	not says(a, field)
	message := sprintf("the METADATA of the package %s has no %s", [a.name, field])
}

# METADATA
# title: Package of no area
# description: OPA's decision log has the label with whatever a rule of the package gave.
violation contains {"file": a.file, "line": a.line, "message": message} if {
	some a in annotated
	of_package(a)
	says(a, "labels")
	not text(object.get(a.labels, "area", null))
	message := sprintf("the labels of the package %s do not tell its area", [a.name])
}

# METADATA
# title: Reason not described
violation contains {"file": a.file, "line": a.line, "message": message} if {
	some a in annotated
	gives_reasons(a)
	some field in {"title", "description", "labels"}
	not says(a, field)
	message := sprintf("the METADATA of %s has no %s", [a.name, field])
}

# METADATA
# title: Reason without its code
# description: |
#   Readers look a code up by the description, decision logs by the label: both name it, and the same one.
#   `custom` is the label of what passes other rules' reasons on.
violation contains {"file": a.file, "line": a.line, "message": message} if {
	some a in annotated
	gives_reasons(a)
	says(a, "labels")
	not names_its_code(a)
	message := sprintf("the label code of %s is not the code that its description begins with", [a.name])
}

# METADATA
# title: Entry point not described
violation contains {"file": a.file, "line": a.line, "message": message} if {
	some a in annotated
	a.entrypoint
	some field in {"title", "description"}
	not says(a, field)
	message := sprintf("the METADATA of the entry point %s has no %s", [a.name, field])
}

# The packages of the policy, each with its first file. A name without .rego is of data.
packages[name] := min(files) if {
	some name, listed in input.namespaces
	not endswith(name, "_test")
	files := {path(file) |
		some file in listed
		endswith(file, ".rego")
		not endswith(file, "_test.rego")
	}
	count(files) > 0
}

described contains a.name if {
	some a in annotated
	of_package(a)
}

annotated contains object.union(entry.annotations, {
	"name": concat(".", [part.value | some part in entry.path]),
	"last": entry.path[count(entry.path) - 1].value,
	"scope": object.get(entry.annotations, "scope", ""),
	"entrypoint": object.get(entry.annotations, "entrypoint", false),
	"file": path(entry.location.file),
	"line": entry.location.row,
}) if {
	some entry in input.annotations
	not endswith(entry.location.file, "_test.rego")
}

of_package(a) if a.scope in {"package", "subpackages"}

gives_reasons(a) if {
	a.scope in {"rule", "document"}
	a.last in {"deny", "finding", "reason"}
}

says(a, field) if text(object.get(a, field, null))

says(a, field) if {
	value := object.get(a, field, null)
	is_object(value)
	value != {}
}

text(value) if {
	is_string(value)
	trim_space(value) != ""
}

names_its_code(a) if a.labels.code == "custom"

names_its_code(a) if {
	code := a.labels.code
	regex.match(`^[a-z][a-z0-9_]{0,63}$`, code)
	startswith(object.get(a, "description", ""), sprintf("%s. ", [code]))
}

# opa inspect begins some paths with a slash, and others not.
path(file) := trim_prefix(file, "/")
