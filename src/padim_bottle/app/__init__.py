"""A page in the browser: photos, drawn defects and what the models say of them."""
