"""Where images come from: folders, tables, tars, near and from afar."""
