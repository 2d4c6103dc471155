"""Research use only: not a medical device, not for diagnosis."""

from oneshot_medad import space

page = space.app("your-name/brain-detector", revision="main")

if __name__ == "__main__":
    page.launch()
