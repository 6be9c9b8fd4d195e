"""``bb-ops backup``: take backups and see what exists."""

from bb_ops.cli.tree import Leaf, Tree

command = Tree(
    "backup",
    {
        "combine": Leaf("bb_ops.cli.full:combine_", "Make a full backup out of an increment and its chain."),
        "full": Leaf("bb_ops.cli.full:full", "Take a full physical backup now."),
        "incremental": Leaf("bb_ops.cli.incremental:incremental", "Seal the WAL, and take the blocks that changed."),
        "list": Leaf("bb_ops.cli.listing:list_", "List the backups of every region, with what is proven."),
        "logical": Leaf("bb_ops.cli.dumps:logical", "Dump every database with its rows."),
        "schema": Leaf("bb_ops.cli.dumps:schema", "Dump the definitions of every database."),
        "show": Leaf("bb_ops.cli.listing:show", "Show everything that is known of one backup."),
        "status": Leaf("bb_ops.cli.status:status", "Say what can be restored, what is proven, what is missing."),
    },
    help="Take backups and see what exists.",
)
