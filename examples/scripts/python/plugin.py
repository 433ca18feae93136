"""A plugin in Python: clusters of services whose key begins with a prefix get the fields of the configuration."""

import json

from wit_world import exports
from wit_world.imports import configuration
from wit_world.imports.types import Edit_Merge, FieldValue, Outcome, Target


class Clusters(exports.Clusters):
    def apply(self, target: Target) -> Outcome:
        settings = json.loads(configuration.json())
        edits = []
        if target.service.startswith(settings["prefix"]):
            edits.append(Edit_Merge(FieldValue("", "", json.dumps(settings["merge"]))))
        return Outcome(edits, [])
