"""Reproduction of the tables and figures of Zhang and Ding (SP-DARTS)."""
