"""NMS in the graph: candidates, decision, nodes."""
