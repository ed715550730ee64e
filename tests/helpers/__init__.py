"""What several tests use: workloads drawn, refusals, scenarios, a second implementation."""
