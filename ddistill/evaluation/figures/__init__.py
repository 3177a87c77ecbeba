"""Pictures, plots, tables and pages; they know no stages."""
