"""``bb-ops recover``: bring a backup back, beside what exists."""

from bb_ops.cli.tree import Leaf, Tree

command = Tree(
    "recover",
    {
        "events": Leaf("bb_ops.cli.recover_events:events", "List what was dropped, truncated or deleted, and when."),
        "full": Leaf("bb_ops.cli.recover_full:full", "Restore a backup into an empty directory."),
        "interactive": Leaf("bb_ops.cli.recover_interactive:interactive", "Choose, see the plan, and recover."),
        "plan": Leaf("bb_ops.cli.recover_point:plan", "Show how to get to a moment and what it costs."),
        "point-in-time": Leaf("bb_ops.cli.recover_point:point_in_time", "Bring the cluster back as of a moment."),
        "table": Leaf("bb_ops.cli.recover_table:table", "Bring one table back as of a moment."),
        "readiness": Leaf("bb_ops.cli.recover_readiness:readiness", "If a region died now: what is lost, how long?"),
        "release": Leaf("bb_ops.cli.recover_switch:release_", "Remove the old data that a switch has kept."),
        "switch": Leaf("bb_ops.cli.recover_switch:switch", "Let a proven copy take a live directory's place."),
    },
    help="Bring a backup back, beside what exists; a live cluster is replaced only when confirmed.",
)
