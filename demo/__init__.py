"""A tiny genuine Stable Diffusion model, drawn portraits, and a campaign that runs anywhere."""
