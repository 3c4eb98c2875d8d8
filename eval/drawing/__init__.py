"""What is drawn of a run.

figures      colours, styles and the projection that figures share
run_figures  figures of a run, as PNG
pictures     patches, reconstructions and an orbit of a run, stored for reports
"""
