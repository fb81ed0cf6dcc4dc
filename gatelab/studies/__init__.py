"""Studies that come with Gatelab, one Python file each; `gatelab run NAME`. Copy one to write your own."""
