"""The tables and figures of Zhang and Ding (SP-DARTS), made again."""
